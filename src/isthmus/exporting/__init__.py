"""Models written as folders that other libraries load with classes of their own."""
